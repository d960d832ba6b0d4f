-- Removes a server. ARGV: its name. Whether there was one.
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then
    return 0
end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], '', time[1] .. '.' .. time[2] .. '.' .. redis.call('HLEN', KEYS[1]))
return 1
