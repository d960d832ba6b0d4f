-- Ends the listening, and tells the peers unless the recipient may still come back unnoticed.
-- ARGV: the key, the stream, how far it was given its log.
local member = find(ARGV[FIRST + 1])
local stream = ARGV[FIRST + 2]
if member and text(member.stream) == stream then
    is_more = redis.call('HSET', cursors, member.key, stream .. ':' .. ARGV[FIRST + 3]) == 1
    redis.call('ZREM', present, member.key .. ' ' .. stream)
    -- What was sent to it in this millisecond was sent before.
    member.ended, member.position = now + 1, math.max(tonumber(ARGV[FIRST + 3]), member.from)
    save(member)
    set('untold', 1)
    if member.is_host then
        tell_of_host()
    else
        tell_of_client(member)
    end
end
return ok()
