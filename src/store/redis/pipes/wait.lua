-- Becomes one of the senders, under this name, where there are not as many as may be.
local why = why_not()
if why then
    return {why}
end
local place = role == 'host' and 'to-guest' or 'to-host'
if #senders(place) >= tonumber(given(2)) then
    return {'too many senders'}
end
touch()
wait_at(place, given(1))
return {role, ticket()}
