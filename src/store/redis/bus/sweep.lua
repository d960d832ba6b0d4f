-- Drops what is dead; the bus too, where nobody has used it for its lifetime.
local is_used = bus.posted or bus.signed or bus.registered > 0 or readers() > 0
local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
local is_alive = last and number_of(last[1]) >= (now - lifetime + 1) * 1024
if has_passed(bus.touched, is_used and bus_lifetime or math.min(bus_lifetime, UNUSED)) and not is_alive then
    redis.call('DEL', unpack(KEYS))
    return {'unknown bus'}
end
local all = redis.call('HGETALL', users)
for place = 1, #all, 2 do
    local seen = string.match(all[place + 1], ',(%d+)$')
    if has_passed(tonumber(seen), math.max(bus_lifetime, lifetime)) then
        redis.call('HDEL', users, all[place])
    end
end
trim()
return {'ok', kept, text(now)}
