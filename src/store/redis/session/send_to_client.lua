-- Sends a message to a client.
-- ARGV: its key, the message.
local member = find(ARGV[FIRST + 1])
if not member or not client_is_present(member) then
    return refused('client gone')
end
local why = put(member, MESSAGE, ARGV[FIRST + 2], max_queue)
if why then
    return refused(why)
end
return ok()
