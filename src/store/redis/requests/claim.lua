-- Says that a far end is there, and gives it the requests that have waited longest.
-- ARGV: its name, since when it listens (ms; '' from now on), and how many it takes.
-- The answer: since when it listens, and of each request the name and what is asked.
local own, since, most = ARGV[1], tonumber(ARGV[2] == '' and now or ARGV[2]), tonumber(ARGV[3])
if not redis.call('ZSCORE', key('far-ends'), own) then
    note_change()
end
note_there('far-ends', own)
local claimed = {}
while #claimed < 2 * most do
    local name = redis.call('ZRANGE', key('waiting'), 0, 0)[1]
    if not name then
        break
    end
    redis.call('ZREM', key('waiting'), name)
    local stream = pending(name)
    if stream then
        local request, asked = unpack(redis.call('HMGET', key(name), 'request', 'asked'))
        set(stream, 'state', 'claimed')
        -- Whoever listened before it was asked may have died long since, and has it for nothing after the first.
        if stream.claims == 0 or since > tonumber(asked) then
            set(stream, 'claims', stream.claims + 1)
        end
        claimed[#claimed + 1] = name
        claimed[#claimed + 1] = request
    end
end
return {text(since), claimed}
