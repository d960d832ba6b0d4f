-- A far end leaves. It may have been called for what still waits. ARGV: its name.
redis.call('ZREM', key('far-ends'), ARGV[1])
note_change()
if redis.call('EXISTS', key('waiting')) == 1 then
    call_far_end()
end
return {'ok'}
