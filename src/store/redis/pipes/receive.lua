-- Becomes the receiver, under this name.
local why = why_not()
if why then
    return {why}
end
local place = 'to-' .. role
if receiver_at(place) then
    return {'receiver there'}
end
touch()
make(given(1), 'place', place)
redis.call('HSET', base, place, given(1))
call_senders(place)
return {role, ticket()}
