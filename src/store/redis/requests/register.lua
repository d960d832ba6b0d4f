-- Registers a server, if there is none of that name. ARGV: its name, and what is known of it. Whether it is new.
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then
    return 0
end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], '', time[1] .. '.' .. time[2] .. '.' .. redis.call('HLEN', KEYS[1]))
redis.call('PEXPIRE', KEYS[1], 31536000000)
return 1
