-- Says that some that listen are there, tells of peers that have gone, and what has become of each: it listens ('0'), another has
-- its place ('1'), or it is over ('2'). Begins with the last that was said to any of them.
-- ARGV: whether they listen as the host ('1'), and of each the key, the last generation, the stream, and whether it is whichever
-- is the host ('1').
local is_host = ARGV[FIRST + 1] == '1'
local answer, said = {}, 0
could_say_nothing()
set('tended', now)
for place = FIRST + 2, #ARGV, 4 do
    local key, last, stream, is_any = ARGV[place], tonumber(ARGV[place + 1]), tonumber(ARGV[place + 2]), ARGV[place + 3]
    local member = find(key)
    local standing = 0
    if is_any == '1' and key ~= session.host then
        standing = 2
    elseif member and member.stream > stream then
        standing = 1
    else
        if not member or member.stream < stream then
            -- Somebody has lost it.
            member = member or add(key, last)
            member.stream, member.begin = stream, member.position
            save(member)
            redis.call('HSET', cursors, key, text(stream) .. ':' .. text(member.position))
        elseif member.ended then
            -- It was taken for gone while it could not say that it is there.
            member.ended, member.told = nil, false
            save(member)
        end
        -- Where it counted as gone, the key may be a new one.
        if redis.call('ZADD', present, text(now + THERE), key .. ' ' .. text(stream)) == 1 then
            is_more = true
        end
        said = math.max(said, last_said(member, false))
    end
    answer[#answer + 1] = standing
end
if session.untold == 1 or redis.call('ZCOUNT', present, '-inf', text(now)) > 0 then
    if is_host then
        tell_all()
    else
        tell_of_host()
    end
end
return ok(text(said), answer)
