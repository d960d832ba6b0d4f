-- Notes how far a stream was given its log, if it has not lost its place.
-- KEYS: the members, how far each was given its log. ARGV: the key, the stream, how far.
local stream = string.match(redis.call('HGET', KEYS[1], ARGV[1]) or '', '^%d+,%d+,%d+,(%d+),')
if stream == ARGV[2] then
    redis.call('HSET', KEYS[2], ARGV[1], ARGV[2] .. ':' .. ARGV[3])
end
return 1
