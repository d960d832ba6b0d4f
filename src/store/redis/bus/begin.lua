-- What all that is done on a bus begins with.
--
-- KEYS: the bus's record, its log, its registered users, until when each node is there, how many readers wait on each.
-- ARGV: how long messages live, how many bytes of them there may be, how long the bus outlives its last use (times are in
-- milliseconds), and what to make where there is no bus: nothing (''), 'open', or 'signed'.
--
-- The answer begins with 'ok' (and for how long the bus is kept from now on, 0 where that was noted a while ago, and what
-- time it is), or with why it is refused.

local record, log, users, nodes, waiting = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local lifetime, most, bus_lifetime, make = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
-- What nobody has used yet is kept for so long.
local UNUSED = 60000
-- A node that does not say for so long that it is there has gone.
local NODE = 5000
-- What an entry takes beside its data, about.
local HEAD = 50

local function look()
    local fields = redis.call('HMGET', record, 'first', 'plain', 'registered', 'signed', 'posted', 'touched', 'last', 'gone', 'total')
    if not fields[1] then
        return nil
    end
    local numbers = {}
    for place, field in ipairs(fields) do
        numbers[place] = tonumber(field)
    end
    local first, plain, registered, signed, posted, touched, last, gone, total = unpack(numbers)
    return {
        first = first, plain = plain, registered = registered, signed = signed == 1, posted = posted == 1,
        touched = touched, last = last, gone = gone, total = total,
    }
end

local bus = look()
local is_new = not bus
if is_new then
    if make == '' then
        return {'unknown bus'}
    end
    redis.call('DEL', unpack(KEYS))
    -- Of the time, so that no number of an earlier bus of this name comes again.
    local first = text((now + 1) * 1024)
    redis.call('HSET', record, 'first', first, 'plain', 0, 'registered', 0, 'signed', make == 'signed' and 1 or 0,
        'posted', 0, 'touched', 0, 'last', first, 'gone', 0, 'total', 0)
    bus = look()
end

-- How long the bus is kept.
local function keep()
    local keep = bus_lifetime
    if bus.posted then
        keep = math.max(keep, lifetime)
    elseif not bus.signed and bus.registered == 0 then
        keep = math.min(keep, UNUSED)
    end
    return keep
end

local kept = 0
local function touch(is_changed)
    local pause = math.min(bus_lifetime, UNUSED) / 4
    if is_changed or has_passed(bus.touched, pause) then
        bus.touched = now
        redis.call('HSET', record, 'touched', text(now))
        -- It is noted anew only after a while: a message that is posted until then has its whole lifetime, too.
        kept = math.max(keep() + pause, NODE)
        for _, key in ipairs({record, log, users}) do
            redis.call('PEXPIRE', key, text(kept))
        end
    end
end

-- Whether the bus has given out the number. A registered user counts as seen.
local function knows(user)
    local number = tonumber(user)
    if number % 2 == 0 then
        return number >= bus.first and (number - bus.first) / 2 < bus.plain
    end
    local secret, last, seen = string.match(redis.call('HGET', users, user) or '', '^(%x+),(%d+),(%d+)$')
    if not secret then
        return false
    end
    if has_passed(tonumber(seen), math.min(bus_lifetime, UNUSED) / 4) then
        redis.call('HSET', users, user, secret .. ',' .. last .. ',' .. text(now))
    end
    return true
end

local function new_user()
    local user = bus.first + 2 * bus.plain
    bus.plain = bus.plain + 1
    redis.call('HSET', record, 'plain', text(bus.plain))
    return text(user)
end

-- The readers that wait on nodes that are there.
local function readers()
    local count = 0
    for _, node in ipairs(redis.call('ZRANGEBYSCORE', nodes, '-inf', '(' .. text(now))) do
        redis.call('HDEL', waiting, node)
        redis.call('ZREM', nodes, node)
    end
    for _, some in ipairs(redis.call('HVALS', waiting)) do
        count = count + some
    end
    return count
end

-- So many wait on this node, which is there.
local function wait_on(node, count)
    redis.call('ZADD', nodes, text(now + NODE), node)
    redis.call('HSET', waiting, node, count)
    redis.call('PEXPIRE', nodes, 2 * NODE)
    redis.call('PEXPIRE', waiting, 2 * NODE)
end

local function number_of(id)
    return tonumber(string.match(id, '^%d+'))
end

-- Drops what is too old. The bytes that are left.
local function trim()
    local oldest = text(math.max(now - lifetime + 1, 0) * 1024)
    local first = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
    if first and number_of(first[1]) < tonumber(oldest) then
        local dropped = redis.call('XREVRANGE', log, '(' .. oldest, '-', 'COUNT', 1)[1]
        bus.gone = number_of(dropped[1])
        redis.call('HSET', record, 'gone', text(bus.gone))
        redis.call('XTRIM', log, 'MINID', '=', oldest)
        first = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
    end
    -- Each entry says how many bytes there were before it, as its last field.
    return first and bus.total - tonumber(first[2][6]) or 0
end
