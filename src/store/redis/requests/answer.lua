-- Begins to answer. ARGV: the request's name, and the sender's.
local stream = pending(ARGV[1])
if not stream then
    return {'nobody'}
end
redis.call('HSET', key(ARGV[1]), 'sender', ARGV[2], 's', text(now))
redis.call('HDEL', key(ARGV[1]), 'request')
redis.call('ZREM', key('waiting'), ARGV[1])
redis.call('ZREM', key('clients'), ARGV[1])
return {'ok'}
