-- Makes a session, which nobody else has made. ARGV: how long it is kept (ms), the hash of the host's token, whether it is secure.
redis.call('HSET', KEYS[1], 'token', ARGV[2], 'secure', ARGV[3], 'epoch', '0', 'touched', text(now))
redis.call('PEXPIRE', KEYS[1], text(ARGV[1] + KEPT))
return {'ok'}
