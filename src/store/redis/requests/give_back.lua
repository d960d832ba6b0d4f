-- Has claimed requests wait again. ARGV: their names.
for _, name in ipairs(ARGV) do
    local stream = pending(name)
    if stream and stream.claims < MOST_CLAIMS and redis.call('HGET', key(name), 'state') == 'claimed' then
        set(stream, 'state', 'waiting')
        note_waiting(name, redis.call('HGET', key(name), 'asked'))
        call_far_end()
    end
end
return {'ok'}
