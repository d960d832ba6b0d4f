-- Says that a receiver is there, and how far it is; and gives it the head, and some of the bytes that come next.
-- ARGV: its ticket, its name, up to where it has them, how many its client has taken (-1 where it has not begun), so many bytes
-- (about; 0 for none), how many it wants in all ('' for all that come), and whether it leaves ('1').
-- The answer: whether it is still wanted, whether a sender has taken it, whether it still has its place, how many bytes were
-- sent, the end, the head (after an 'h'), and the bytes.
local ticket, name, position, taken, size, wanted, leaves = unpack(ARGV)
local stream = look(name)
if not stream then
    return {'removed'}
end
position, taken, size = tonumber(position), tonumber(taken), tonumber(size)
local bytes = key(name .. ':bytes')
local has_sender_gone = has_gone(stream, 'r', 's') and stream.sender ~= ''
if taken > stream.taken then
    set(stream, 'taken', taken)
end
if leaves == '1' then
    set(stream, 'left', '1')
    leave_place(stream)
    redis.call('DEL', bytes)
    if stream.place == '' then
        redis.call('ZREM', key('waiting'), name)
        redis.call('ZREM', key('clients'), name)
    end
    if stream.sender == '' then
        redis.call('DEL', key(name))
    else
        call(stream.sender)
    end
    return {'left'}
end
local why = why_away(ticket)
if why then
    return {why}
end
if position > stream.sent then
    -- Redis has lost bytes that were given already: what comes now would not follow them.
    return {'removed'}
end
if has_sender_gone and stream.ending == '' then
    set(stream, 'ending', 'cut')
end
if stream.ending ~= '' and stream.place ~= '' and redis.call('HEXISTS', key(name), 'head') == 0 then
    -- Whoever leaves without a word makes room for another.
    redis.call('HDEL', key(name), 'sender', 's', 'end')
    call_senders(stream.place)
    return {'ok', 0, 1, '0', '', '', {}}
end
if stream.place == '' and stream.sender == '' then
    wait_at('clients', name)
end

local waiting = redis.call('XLEN', bytes)
if waiting > 0 then
    redis.call('XTRIM', bytes, 'MINID', '=', text(position + 1))
    if waiting >= WINDOW and redis.call('XLEN', bytes) < WINDOW then
        call(stream.sender)
    end
end
local pieces = {}
while size > 0 do
    local entry = redis.call('XRANGE', bytes, text(position + 1), '+', 'COUNT', 1)[1]
    if not entry then
        break
    end
    pieces[#pieces + 1] = entry[2][2]
    position = position + #entry[2][2]
    size = size - #entry[2][2]
end
if position > stream.given then
    set(stream, 'given', position)
end
-- Who has all of it in memory needs its place no more: with the last byte its client may come for more at once.
if (wanted ~= '' and position >= tonumber(wanted)) or (stream.ending ~= '' and position == stream.sent) then
    leave_place(stream)
end
local head = taken < 0 and redis.call('HGET', key(name), 'head') or ''
local has_place = stream.place ~= '' and redis.call('HGET', base, stream.place) == name
return {'ok', stream.sender ~= '' and 1 or 0, has_place and 1 or 0, text(stream.sent), stream.ending, head, pieces}
