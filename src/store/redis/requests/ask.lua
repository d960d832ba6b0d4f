-- Asks. ARGV: the request's name, what is asked, how many may wait, how often it has been claimed under other names.
if #those_there('clients') >= tonumber(ARGV[3]) then
    return {'too many'}
end
make(ARGV[1], 'request', ARGV[2], 'claims', ARGV[4], 'asked', text(now), 'state', 'waiting')
note_there('clients', ARGV[1])
note_waiting(ARGV[1], text(now))
call_far_end()
return {'ok'}
