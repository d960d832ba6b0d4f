-- What is done with the requests of a PTTH server begins with.
--
-- A request is a stream whose receiver is its client. Its record has besides, until its answer begins, the request, when it was
-- asked, how often it was claimed, and whether a far end has it ('state': 'waiting' or 'claimed'). Those that wait, by when they were
-- asked; the clients and the far ends, by when they are gone unless they say more.
local MOST_CLAIMS = 2

-- The far ends, or the clients, that are there.
local function those_there(kind)
    redis.call('ZREMRANGEBYSCORE', key(kind), '-inf', text(now))
    return redis.call('ZRANGE', key(kind), 0, -1)
end

local function note_there(kind, name)
    redis.call('ZADD', key(kind), text(now + LEASE), name)
    redis.call('PEXPIRE', key(kind), KEPT)
end

-- A request waits for a far end, since it was asked.
local function note_waiting(name, asked)
    redis.call('ZADD', key('waiting'), asked, name)
    redis.call('PEXPIRE', key('waiting'), KEPT)
end

-- Calls a far end for a request that waits, if one is there, not always the same.
local function call_far_end()
    local far_ends = those_there('far-ends')
    if #far_ends > 0 then
        call(far_ends[tonumber(time[2]) % #far_ends + 1])
    end
end

-- A far end has come or gone. It is known for a month.
local function note_change()
    redis.call('SET', key('seen'), text(now), 'PX', 2592000000)
end

-- A request without an answer, whose client is there.
local function pending(name)
    local stream = look(name)
    if is_received(stream) and stream.sender == '' then
        stream.claims = tonumber(redis.call('HGET', key(name), 'claims'))
        return stream
    end
    return nil
end
