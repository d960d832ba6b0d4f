-- Drops what is dead, and tells the peers of what has died; removes the session where that is over.
-- ARGV: whether that is to be done 'now', or may wait if somebody has just done it ('later'); or whether somebody wants its 'room',
-- for whom a session goes, too, that nobody has used for a while: nobody has listened, and no message was ever sent.
local when = ARGV[FIRST + 1]
local function is_unused()
    for _, member in ipairs(all()) do
        if member.stream > 0 or member.messages > 0 then
            return false
        end
    end
    return session.all_messages == 0 and has_passed(session.touched, UNUSED)
end
if when == 'room' and is_unused() then
    redis.call('DEL', unpack(KEYS))
    return {'none'}
elseif when ~= 'now' and not has_passed(session.swept or 0, math.min(session_lifetime / 2, 5000)) then
    is_look = true
    return ok()
end
set('swept', now)
tell_all()
local is_host_over = host_is_over()
local _, kind = host_is_present()
if is_host_over and kind == 'waiting' then
    -- One that never opened has not been told of yet.
    tell_clients()
end
local is_promised_any, left = false, {}
for _, member in ipairs(all()) do
    local is_left = true
    if is_promised(member) then
        is_promised_any = true
    else
        local is_current_host = member.is_host and is_current(member)
        -- Somebody is to hear of its end first.
        local is_untold = not is_host_over and is_current(member) and member.ended and not member.told
        if not is_current_host and not is_untold and is_out_of_time(member) then
            free(member)
            is_left = false
        end
    end
    if is_left then
        left[#left + 1] = member
    end
end
-- Whatever has become of the host, its clients may come for their messages.
if is_host_over and not is_promised_any then
    redis.call('DEL', unpack(KEYS))
    return {'none'}
end
for _, is_host in ipairs({true, false}) do
    trim(is_host, floor_of(is_host, left))
end
return ok()
