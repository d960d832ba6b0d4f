-- Keeps the bus in use, and says that a node is there; whether the user is known, and what there is.
-- ARGV: the user ('' for none), the node, and how many readers wait there: none where it leaves.
local user, node, count = ARGV[5], ARGV[6], tonumber(ARGV[7])
if user ~= '' and not knows(user) then
    return {'unknown user'}
end
if count > 0 then
    wait_on(node, count)
    touch(false)
elseif node ~= '' then
    redis.call('ZREM', nodes, node)
    redis.call('HDEL', waiting, node)
else
    touch(false)
end
return {'ok', kept, text(now), text(bus.first), text(bus.last)}
