-- Sends a message to the host.
-- ARGV: the key of the client from which it is, the registration of its token ('' for none), the message.
local member, why = speaking_client(ARGV[FIRST + 1], ARGV[FIRST + 2])
if not member then
    return refused(why)
end
local to = host_or_new()
if not host_is_present(to) then
    return refused('host gone')
end
why = put(to, MESSAGE, ARGV[FIRST + 3], max_queue)
if why then
    return refused(why)
end
return ok()
