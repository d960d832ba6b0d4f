-- The registered servers: a hash of what is known of each by its name; with no name it has the number of the last change.
-- ARGV: of which change the servers are known already. The answer: of which they are, and where that is another, all.
local YEAR = 31536000000
local last = redis.call('HGET', KEYS[1], '') or ''
-- They are kept for a year after somebody has asked for them last.
if last ~= '' and redis.call('PTTL', KEYS[1]) < YEAR - 86400000 then
    redis.call('PEXPIRE', KEYS[1], YEAR)
end
if last == ARGV[1] then
    return {last, {}}
end
return {last, redis.call('HGETALL', KEYS[1])}
