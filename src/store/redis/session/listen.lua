-- Begins to listen, or only looks whether that would be possible.
-- ARGV: the key of the one who listens ('' for whichever is the host now), whether it is a client ('1'), the registration of its
-- token ('' for none), the id of the last event that it has ('' for none), and whether this is a look ('1').
local key, is_client, registration = ARGV[FIRST + 1], ARGV[FIRST + 2] == '1', ARGV[FIRST + 3]
local resume = ARGV[FIRST + 4] ~= '' and tonumber(ARGV[FIRST + 4]) or nil
is_look = ARGV[FIRST + 5] == '1'
if key == '' then
    key = session.host
end
local why
if is_client then
    local member
    member, why = speaking_client(key, registration)
    if member and not host_is_present() then
        why = 'host gone'
    end
elseif not host_may(registration) then
    why = 'expired'
end
local member = find(key)
if why == 'expired' or why == 'host gone' then
    -- What it was promised may wait for it still.
    local function has_waiting()
        local position = resume and math.max(resume, member.from) or member.position
        return last_said(member, false) > position
    end
    if not member or not has_waiting() then
        return refused(why)
    end
elseif why then
    return refused(why)
end
if is_look then
    return ok()
end
member = member or host_or_new()

local log, part = log_of(member.is_host)
local last = session['last' .. part]
local position, is_lost = member.position, 0
if resume then
    -- Whoever has no event yet may say 0, and means everything.
    if resume > 0 and (resume > last or resume < member.from or has_lost(key, resume, part)) then
        is_lost = 1
    end
    position = math.min(resume, last)
end
position = math.max(position, math.min(member.from, last))
-- Whoever comes back without an id has not been there for broadcasts since then.
local gone_since = not resume and member.ended and text(member.ended + grace) or ''
redis.call('ZREM', present, member.key .. ' ' .. text(member.stream))
member.stream = member.stream + 1
member.begin, member.ended, member.told = position, nil, false
save(member)
redis.call('HSET', cursors, member.key, text(member.stream) .. ':' .. text(position))
redis.call('ZADD', present, text(now + THERE), member.key .. ' ' .. text(member.stream))
-- Whoever has the place hears that it is taken.
local taken = '!\n' .. member.key .. '\n' .. text(member.stream)
redis.call('SPUBLISH', log, taken)
redis.call('SPUBLISH', log .. ' ' .. member.key, taken)
is_more = true
return ok(member.key, text(member.first), text(member.last), text(member.stream), text(position), text(last), gone_since, is_lost)
