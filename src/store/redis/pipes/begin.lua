-- What the intentions of a session of pipes begin with.
--
-- The key itself is the session's record: the hash of the host's token, whether it is secure, the guest's address, how often another
-- guest was named ('epoch'), when it was used last, whether a sender has met a receiver, and who has the place of the receiver
-- 'to-host' and 'to-guest'. At a place senders wait, by when they are gone unless they say more.
--
-- ARGV: how long a session is kept in which nobody is (ms), the visitor's address, how many tokens it has sent, the hashes of these.
local lifetime, address, tokens = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local PLACES = {'to-host', 'to-guest'}

local token, secure, guest, epoch, touched, met =
    unpack(redis.call('HMGET', base, 'token', 'secure', 'guest', 'epoch', 'touched', 'met'))

local function touch()
    redis.call('HSET', base, 'touched', text(now))
    redis.call('PEXPIRE', base, text(lifetime + KEPT))
end

local function receiver_at(place)
    local name = redis.call('HGET', base, place)
    local stream = name and look(name)
    return is_received(stream) and stream or nil
end

local function is_in_use()
    for _, place in ipairs(PLACES) do
        if receiver_at(place) or #senders(place) > 0 then
            return true
        end
    end
    return false
end

local function is_over()
    return not token or (has_passed(tonumber(touched), lifetime) and not is_in_use())
end

local function remove()
    for _, place in ipairs(PLACES) do
        local name = redis.call('HGET', base, place)
        if name then
            call(name)
        end
        call_senders(place)
    end
    redis.call('DEL', base, key(PLACES[1]), key(PLACES[2]))
end

-- Who the visitor is; nothing for a stranger. The hash of a token is compared as Lua compares: by where the text is.
local role
if token then
    for place = 4, 3 + tokens do
        if ARGV[place] == token then
            role = 'host'
        end
    end
    if not role and (secure == '0' or (address ~= '' and address == guest)) then
        role = 'guest'
    end
end

-- What the intention is given.
local function given(number)
    return ARGV[3 + tokens + number]
end

-- Why the visitor may do nothing here, if so.
local function why_not()
    if is_over() then
        return 'unknown session'
    end
    return not role and 'not the guest' or nil
end

-- By which it is known later that the visitor was sent away.
local function ticket()
    return role == 'host' and 'host' or epoch
end
