-- What all that is done with streams of bytes begins with.
--
-- KEYS: what the streams belong to. All keys are this one, or begin with it and a colon.
--
-- A stream is known by the name of its receiver: so is its record, and the channel on which that is called. A sender is called on
-- one of its own name. The record says when either was there last ('r', 's'), who the sender is, where the receiver has its place
-- among those of a session, how many bytes were sent, were given to the receiver's process, and were taken by its client, how it
-- has ended ('complete' or 'cut'), and whether the receiver has left. The bytes are entries whose ids are where they end.

local base = KEYS[1]
-- Whoever does not say for so long that it is there has gone.
local LEASE = 5000
-- What nobody has touched for so long goes.
local KEPT = 60000
-- So many pieces of bytes wait at most.
local WINDOW = 8

local function key(name)
    return base .. ':' .. name
end

local function call(name)
    redis.call('SPUBLISH', key(name), '')
end

-- A stream's record.
local function look(name)
    local fields = redis.call('HMGET', key(name), 'r', 's', 'sender', 'place', 'sent', 'given', 'taken', 'end', 'left')
    if not fields[1] then
        return nil
    end
    local r, s, sender, place, sent, given, taken, ending, left = unpack(fields)
    return {
        name = name, r = tonumber(r), s = tonumber(s or 0), sender = sender or '', place = place or '',
        sent = tonumber(sent or 0), given = tonumber(given or 0), taken = tonumber(taken or -1), ending = ending or '',
        left = left == '1',
    }
end

local function set(stream, field, value)
    stream[field] = value
    redis.call('HSET', key(stream.name), field == 'ending' and 'end' or field, type(value) == 'number' and text(value) or value)
end

-- Makes a stream whose receiver has come.
local function make(name, ...)
    redis.call('HSET', key(name), 'r', text(now), ...)
    redis.call('PEXPIRE', key(name), KEPT)
end

-- Whether its receiver is there, for somebody who has nothing to do with it.
local function is_received(stream)
    return stream and not stream.left and not has_passed(stream.r, LEASE)
end

-- Notes that one end is there. Whether the other has gone: if this one could not say for that long that it is there either, Redis
-- was away, and the other has as much time anew.
local function has_gone(stream, own, other)
    if has_passed(stream[own], LEASE - 1000) then
        set(stream, other, now)
    end
    set(stream, own, now)
    redis.call('PEXPIRE', key(stream.name), KEPT)
    redis.call('PEXPIRE', key(stream.name .. ':bytes'), KEPT)
    return has_passed(stream[other], LEASE)
end

-- The receiver's place is another's.
local function leave_place(stream)
    if stream.place ~= '' and redis.call('HGET', base, stream.place) == stream.name then
        redis.call('HDEL', base, stream.place)
    end
end

-- Notes that somebody waits at a place.
local function wait_at(place, name)
    redis.call('ZADD', key(place), text(now + LEASE), name)
    redis.call('PEXPIRE', key(place), KEPT)
end

-- The senders that wait at a place.
local function senders(place)
    redis.call('ZREMRANGEBYSCORE', key(place), '-inf', text(now))
    return redis.call('ZRANGE', key(place), 0, -1)
end

local function call_senders(place)
    for _, name in ipairs(senders(place)) do
        call(name)
    end
end

-- Why whoever has this ticket has nothing to do here any more, if so. Whoever has none is never sent away.
local function why_away(ticket)
    if ticket == '' then
        return nil
    end
    local epoch = redis.call('HGET', base, 'epoch')
    if not epoch then
        return 'removed'
    elseif ticket ~= 'host' and ticket ~= epoch then
        return 'not the guest'
    end
    if redis.call('PTTL', base) < KEPT then
        redis.call('PEXPIRE', base, KEPT)
    end
    return nil
end
