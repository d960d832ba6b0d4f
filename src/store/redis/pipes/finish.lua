-- A sender has delivered its body. ARGV: the place, the sender, and how long the session is kept now (ms).
redis.call('ZREM', key(ARGV[1]), ARGV[2])
if redis.call('EXISTS', base) == 1 then
    redis.call('HSET', base, 'touched', text(now))
    redis.call('PEXPIRE', base, text(ARGV[3] + KEPT))
end
return {'ok'}
