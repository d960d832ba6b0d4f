-- Says that a sender is there, and sends what it has: the head, a piece of bytes, the end. What was sent already is not sent again.
-- ARGV: the sender's ticket, the stream, the sender, the head (after an 'h'; '' for none), where the bytes begin, the bytes, the end
-- ('' for not yet), and how much memory Redis may use ('' for as much as it has).
-- The answer: whether the receiver is there, how many bytes were sent, how many of them its client has taken ('' where it
-- has not begun), and for how many pieces there is room.
local ticket, name, own, head, start, data, ending, most = unpack(ARGV)
local stream = look(name)
if not stream or stream.sender ~= own then
    return {'lost', 0, '', 0}
end
local has_receiver_gone = has_gone(stream, 's', 'r')
if has_receiver_gone and not stream.left then
    set(stream, 'left', '1')
    leave_place(stream)
end
local why = why_away(ticket)
local is_new, is_tight = false, false
local function finish(how)
    if stream.ending == '' then
        set(stream, 'ending', how)
        is_new = true
    end
end
if stream.left or has_receiver_gone then
    why = why or 'left'
elseif why then
    finish('cut')
else
    local bytes = key(name .. ':bytes')
    if stream.place ~= '' and redis.call('ZSCORE', key(stream.place), own) then
        wait_at(stream.place, own)
    end
    if head ~= '' and redis.call('HSETNX', key(name), 'head', head) == 1 then
        is_new = true
    end
    start = tonumber(start)
    local waiting = redis.call('XLEN', bytes)
    -- Where there is no more memory, one piece goes after the other: a body that has begun gets through.
    is_tight = #data > 0 and waiting > 0 and is_out_of_memory(stream.sent, #data, tonumber(most) or math.huge)
    if start == stream.sent and #data > 0 and waiting < WINDOW and not is_tight then
        -- Whoever has been given all before waits for this.
        is_new = is_new or stream.given == stream.sent
        set(stream, 'sent', start + #data)
        redis.call('XADD', bytes, text(stream.sent) .. '-0', 'd', data)
        redis.call('PEXPIRE', bytes, KEPT)
    end
    if ending == 'cut' or (ending ~= '' and start + #data == stream.sent) then
        finish(ending)
    end
end
if is_new then
    call(name)
end
local room = is_tight and 0 or WINDOW - redis.call('XLEN', key(name .. ':bytes'))
return {why or 'ok', text(stream.sent), stream.taken < 0 and '' or text(stream.taken), room}
