-- Posts a message, and tells its id.
-- ARGV: who ('' for the application), the message, the number of a signature that is the user's own ('' without one), and
-- whether somebody else watches that the user does not say too much ('1'); and how much memory Redis may use.
local user, data, n, is_watched = ARGV[5], ARGV[6], ARGV[7], ARGV[8] == '1'
local is_application = user == ''
if is_application then
    user = '0'
else
    if not knows(user) then
        return {'unknown user'}
    end
    if n ~= '' then
        local secret, last = string.match(redis.call('HGET', users, user), '^(%x+),(%d+),')
        -- As texts: they may be larger than what Lua counts exactly.
        if #n < #last or (#n == #last and n <= last) then
            return {'stale', last}
        end
        redis.call('HSET', users, user, secret .. ',' .. n .. ',' .. text(now))
    elseif bus.signed then
        return {'not registered'}
    end
end

local alive = trim()
-- More than three quarters of the bytes are alive, and of what was said last more than a quarter is the user's.
local function is_crowded()
    if is_watched or is_application or alive <= most / 4 * 3 then
        return false
    end
    local window, all, own, last = math.max(most / 32, 65536), 0, 0, '+'
    -- A bounded look, which reads little more than the window.
    for _ = 1, 60 do
        local some = redis.call('XREVRANGE', log, last, '-', 'COUNT', 16)
        for _, entry in ipairs(some) do
            local size = #entry[2][4] + HEAD
            all = all + size
            if entry[2][2] == user then
                own = own + size
            end
            last = '(' .. entry[1]
        end
        if all >= window or #some < 16 then
            break
        end
    end
    return own > all / 4
end
if is_crowded() then
    return {'says too much'}
end
if alive + #data + HEAD > most then
    return {'full'}
end
if is_out_of_memory(bus.total, #data + HEAD, tonumber(ARGV[9])) then
    return {'data full'}
end

-- Or somebody has removed it.
local is_first = alive == 0 and redis.call('EXISTS', log) == 0
local id = math.max(now * 1024, bus.last + 1)
redis.call('XADD', log, text(id) .. '-0', 'u', user, 'd', data, 'b', text(bus.total))
redis.call('HSET', record, 'last', text(id), 'total', text(bus.total + #data + HEAD), 'posted', 1)
redis.call('SPUBLISH', log, table.concat({text(id), text(bus.last), user, '0', '', '', data}, '\n'))
bus.posted = true
touch(is_first)
return {'ok', kept, text(now), text(id)}
