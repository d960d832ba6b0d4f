-- Adds a client, and tells the registration that it has joined ('' for none).
-- ARGV: its key.
if not host_is_present() then
    return refused('unknown host')
elseif not add_client(ARGV[FIRST + 1], session.generation) then
    return refused('too many clients')
end
return ok(session.registration)
