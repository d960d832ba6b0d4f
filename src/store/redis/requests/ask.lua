-- Asks. ARGV: the request's name, what is asked, how many may wait, how often it has been claimed under other names, and
-- how much memory Redis may use ('' for as much as it has).
if #those_there('clients') >= tonumber(ARGV[3]) then
    return {'too many'}
end
if is_out_of_memory(0, #ARGV[2], tonumber(ARGV[5]) or math.huge) then
    return {'data full'}
end
make(ARGV[1], 'request', ARGV[2], 'claims', ARGV[4], 'asked', text(now), 'state', 'waiting')
note_there('clients', ARGV[1])
note_waiting(ARGV[1], text(now))
call_far_end()
return {'ok'}
