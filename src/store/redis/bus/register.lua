-- Gives out a registered user.
-- ARGV: how many there may be, and what this one signs with.
local most_users, secret = tonumber(ARGV[5]), ARGV[6]
if redis.call('HLEN', users) >= most_users then
    -- The oldest that has never signed and has not been seen for a while gives way.
    local oldest
    local all = redis.call('HGETALL', users)
    for place = 1, #all, 2 do
        local last, seen = string.match(all[place + 1], ',(%d+),(%d+)$')
        local number = tonumber(all[place])
        if last == '0' and has_passed(tonumber(seen), UNUSED) and (not oldest or number < oldest) then
            oldest = number
        end
    end
    if not oldest then
        return {'too many users'}
    end
    redis.call('HDEL', users, text(oldest))
end
local user = text(bus.first + 1 + 2 * bus.registered)
bus.registered = bus.registered + 1
redis.call('HSET', record, 'registered', text(bus.registered))
redis.call('HSET', users, user, secret .. ',0,' .. text(now))
touch(true)
return {'ok', kept, text(now), user, text(bus.last)}
