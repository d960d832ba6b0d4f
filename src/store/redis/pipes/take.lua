-- Takes the receiver that waits, for a sender, which is there. A replica that takes over has to know: else another sender could
-- take it, whose bytes would come after those of the first.
-- ARGV: the sender's ticket, the place, and the sender.
-- The answer: 'ok' and the receiver, or why there is none.
local ticket, place, own = unpack(ARGV)
local why = why_away(ticket)
if why then
    return {why}
end
wait_at(place, own)
local name = redis.call('HGET', base, place)
local stream = name and look(name)
if not is_received(stream) or (stream.sender ~= '' and (stream.sender ~= own or stream.ending ~= '')) then
    return {'nobody'}
end
-- It may have been told so before, and not have heard it.
redis.call('HSET', key(name), 'sender', own, 's', text(now))
redis.call('HSET', base, 'met', '1')
return {'ok', name}
