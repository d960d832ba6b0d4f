-- What all that is done in a session begins with.
--
-- KEYS: the session's record, its members, how far each was given its log, until when each is there, the log of what is said to
-- the host, and that of what is said to the clients.
-- ARGV: how long messages live, how long the session does, the grace (in milliseconds), how many bytes may wait for one
-- recipient, how many there may be for the clients, how many clients there may be, how much memory Redis may use; the host's id, the registration ('' for
-- none) and its key, with which a session is made where there is none, if the id is not ''; the relay's own events: their
-- type, and how those begin that say that a host, or a client, has gone.
--
-- The answer begins with 'ok' (and for how long the session is kept, 0 where that was noted a while ago, and what time it is), or
-- with why it is refused.

local record, members, cursors, present, host_log, client_log = unpack(KEYS)
local lifetime, session_lifetime, grace = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local max_queue, max_topic, max_clients, max_data = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local word, host_closed, client_closed = ARGV[11], ARGV[12], ARGV[13]
local FIRST = 13
-- What nobody has used yet is kept for so long, whoever else wants its place.
local UNUSED = 60000
-- A host that has just been registered may still begin to listen.
local OPENING = 10000
-- A member that does not say for so long that it is there has gone, unless nobody at all could say it for so long: whoever is
-- there does so every 2 s, and a quarter of a second later where that fails.
local THERE, SILENCE = 5000, 2750
local HEAD = 50
local MESSAGE, LEFT_OUT = 'message', 'left-out'
-- What has been given may still be under way: so many bytes of it are kept.
local UNDER_WAY = 1048576
-- To all generations.
local ALWAYS = 4294967295
local is_look = false

local function write(...)
    if not is_look then
        redis.call(...)
    end
end

-- ---- the record

local FIELDS = {'generation', 'touched', 'kept', 'untold', 'last_h', 'gone_h', 'total_h', 'last_c', 'gone_c', 'total_c', 'all', 'all_messages', 'tended', 'doubted', 'doubt', 'known_at', 'known_until', 'known_behind', 'swept', 'full_until'}

local function look()
    local fields = redis.call('HMGET', record, 'id', 'registration', 'host', unpack(FIELDS))
    if not fields[1] then
        return nil
    end
    local found = {id = fields[1], registration = fields[2], host = fields[3]}
    for place, name in ipairs(FIELDS) do
        found[name] = tonumber(fields[place + 3])
    end
    return found
end

local session = look()
local is_new = not session
if is_new then
    if ARGV[8] == '' then
        return {'none'}
    end
    redis.call('DEL', unpack(KEYS))
    -- Of the time, so that no number of an earlier session of this host comes again.
    local first = text((now + 1) * 1024)
    redis.call('HSET', record, 'id', ARGV[8], 'registration', ARGV[9], 'host', ARGV[10], 'generation', 1, 'touched', text(now),
        'kept', 0, 'untold', 0, 'last_h', first, 'gone_h', 0, 'total_h', 0, 'last_c', first, 'gone_c', 0, 'total_c', 0, 'all', 0,
        'all_messages', 0, 'tended', text(now), 'doubted', 0, 'doubt', 0)
    session = look()
end

local function set(name, value)
    session[name] = value
    write('HSET', record, name, type(value) == 'number' and text(value) or value)
end

local kept = 0
-- To be called at the end of all that changes something.
local function keep(is_more)
    if is_more or has_passed(session.kept, math.min(session_lifetime, UNUSED) / 4) then
        set('kept', now)
        kept = 2 * math.max(session_lifetime, lifetime) + grace + UNUSED
        for _, key in ipairs(KEYS) do
            redis.call('PEXPIRE', key, text(kept))
        end
    end
end

local is_more = is_new
local function ok(...)
    if not is_look then
        keep(is_more)
    end
    return {'ok', kept, text(now), ...}
end

local function refused(why)
    if is_more and not is_look then
        keep(true)
    end
    return {why}
end

-- ---- members

-- What is known of those that broadcasts reach, and of how many there are, holds no longer.
local function forget_recipients()
    if session.known_until or session.full_until then
        session.known_until, session.full_until = nil, nil
        write('HDEL', record, 'known_until', 'full_until')
    end
end

-- What says, besides the time, whether a broadcast reaches a member.
local function standing_of(stream, used, ended, told)
    return (stream == '0' and 'used ' .. used or stream) .. ended .. ',' .. told
end

local function parse(key, line, cursor)
    local first, last, from, stream, begin, used, ended, told, said, messages =
        string.match(line, '^(%d+),(%d+),(%d+),(%d+),(%d+),(%d+),(%-?%d+),(%d),(%d+),(%d+)$')
    local member = {
        key = key, is_host = string.sub(key, 1, 1) == 'h', first = tonumber(first), last = tonumber(last), from = tonumber(from),
        stream = tonumber(stream), begin = tonumber(begin), used = tonumber(used), ended = tonumber(ended), told = told == '1',
        said = tonumber(said), messages = tonumber(messages),
    }
    if not member.is_host then
        member.standing = standing_of(stream, used, ended, told)
    end
    if member.ended < 0 then
        member.ended = nil
    end
    local of, position = string.match(cursor or '', '^(%d+):(%d+)$')
    position = tonumber(of) == member.stream and tonumber(position) or member.begin
    member.position = math.max(position, member.from)
    return member
end

local function find(key)
    local line = redis.call('HGET', members, key)
    return line and parse(key, line, redis.call('HGET', cursors, key))
end

local function save(member)
    local stream, used, told = text(member.stream), text(member.used), member.told and '1' or '0'
    local ended = member.ended and text(member.ended) or '-1'
    write('HSET', members, member.key, table.concat({
        text(member.first), text(member.last), text(member.from), stream, text(member.begin), used, ended, told,
        text(member.said), text(member.messages),
    }, ','))
    if not member.is_host and member.standing ~= standing_of(stream, used, ended, told) then
        forget_recipients()
    end
end

local function free(member)
    write('HDEL', members, member.key)
    write('HDEL', cursors, member.key)
    forget_recipients()
end

local function all()
    local at, list = {}, {}
    local positions = redis.call('HGETALL', cursors)
    for place = 1, #positions, 2 do
        at[positions[place]] = positions[place + 1]
    end
    local lines = redis.call('HGETALL', members)
    for place = 1, #lines, 2 do
        list[#list + 1] = parse(lines[place], lines[place + 1], at[lines[place]])
    end
    return list
end

local function is_current(member)
    return member.first <= session.generation and session.generation <= member.last
end

local function clients()
    local list = {}
    for _, member in ipairs(all()) do
        if not member.is_host and is_current(member) then
            list[#list + 1] = member
        end
    end
    return list
end

local function last_of(member)
    return member.is_host and session.last_h or session.last_c
end

-- One of the current generation and those up to the last, to which the log says nothing that it says already.
local function add(key, last)
    local member = {
        key = key, is_host = string.sub(key, 1, 1) == 'h', first = session.generation, last = last, stream = 0, used = now,
        told = false, said = 0, messages = 0,
    }
    member.from = last_of(member)
    member.begin, member.position = member.from, member.from
    save(member)
    is_more = true
    return member
end

local function host()
    return find(session.host)
end

local function host_or_new()
    return host() or add(session.host, session.generation)
end

-- ---- who is there

-- Whether nobody could say that it is there, because Redis was away, stopped or somebody's replica: then each has so long to say
-- it once more.
local function could_say_nothing()
    if has_passed(session.tended, SILENCE) and session.doubted ~= session.tended then
        set('doubted', session.tended)
        set('doubt', now + THERE)
    end
    return now < session.doubt
end

-- Whoever was there up to when is gone by now. Who was when Redis began has so long to say it once more: it may have been away for
-- less than the others need to say nothing.
local gone_until
local function gone_up_to()
    if not gone_until then
        local up = 1000 * tonumber(string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)'))
        gone_until = up < THERE and now - up - 1000 or now
    end
    return gone_until
end

-- 'waiting', 'listening', or 'ended' and when; the end of a killed stream is noted.
local function presence(member)
    if member.ended then
        return 'ended', member.ended
    elseif member.stream == 0 then
        return 'waiting'
    end
    local until_when = tonumber(redis.call('ZSCORE', present, member.key .. ' ' .. text(member.stream)) or 0)
    if until_when > now or (until_when > 0 and (could_say_nothing() or until_when > gone_up_to())) then
        return 'listening'
    end
    -- What was sent to it in this millisecond was sent before.
    if not is_look then
        member.ended = now + 1
        save(member)
        set('untold', 1)
    end
    return 'ended', now + 1
end

local function is_there(member, kind, at)
    return kind ~= 'ended' or (not member.told and not has_passed(at, grace))
end

-- Whether messages are taken for the host, which may have been looked for already.
local function host_is_present(found)
    local member = found or host()
    local kind, at = 'waiting', nil
    if member then
        kind, at = presence(member)
    end
    if kind == 'waiting' then
        return not has_passed(session.touched, session_lifetime), kind
    end
    return is_there(member, kind, at), kind
end

-- Whether messages are taken for a client; and when that ends, unless it listens.
local function client_is_present(member)
    local kind, at = presence(member)
    if kind == 'waiting' then
        return not has_passed(member.used, session_lifetime), member.used + session_lifetime
    end
    return is_there(member, kind, at), at and at + grace
end

-- The last of what was said to a member, of all events or of messages.
local function last_said(member, is_message)
    local own = is_message and member.messages or member.said
    if member.is_host then
        return own
    end
    local name = is_message and 'all_messages' or 'all'
    local to_all
    if member.last == ALWAYS or is_current(member) then
        to_all = session[name]
    else
        to_all = tonumber(redis.call('HGET', record, name .. ' ' .. text(member.first)) or 0)
    end
    -- What was said to all before it was there was not for it.
    return math.max(own, to_all)
end

-- Whether something that was for a member after a position has been dropped, as far as is known: where nothing was said to it
-- since, what was dropped was for others.
local function has_lost(key, position, part)
    if position >= session['gone' .. part] then
        return false
    end
    local member = find(key)
    return not member or last_said(member, false) > position
end

local function is_alive(id)
    return id >= (now - lifetime + 1) * 1024
end

-- Whether a message that is not too old comes after a position. The last is the youngest.
local function has_message(member, position)
    local last = last_said(member, true)
    return last > position and is_alive(last)
end

-- Whether there is a message that was promised to a member, also where a stream was given it and may have lost it.
local function is_promised(member)
    if not member.is_host then
        -- Nothing is promised to a client that has gone, or has not come, though broadcasts may pass it.
        if member.ended then
            if has_passed(member.ended, grace + lifetime) then
                return false
            end
        elseif member.stream == 0 and has_passed(member.used, session_lifetime + lifetime) then
            return false
        end
    end
    return has_message(member, member.from)
end

-- Whether a member has outlived its session lifetime, whatever is promised to it.
local function is_out_of_time(member)
    local kind, at = presence(member)
    if kind == 'listening' or (kind == 'ended' and not has_passed(at, session_lifetime)) then
        return false
    elseif member.is_host and is_current(member) then
        return has_passed(session.touched, session_lifetime)
    end
    return has_passed(member.used, session_lifetime)
end

local function is_over(member)
    return is_out_of_time(member) and not is_promised(member)
end

local function host_is_over()
    local member = host()
    if member then
        return is_over(member)
    end
    return has_passed(session.touched, session_lifetime)
end

-- ---- who is who

local function touch_host()
    if has_passed(session.touched, math.min(session_lifetime, UNUSED) / 4) then
        set('touched', now)
    end
end

-- Frees the oldest of those to whom nothing is promised; false where there is none.
local function free_oldest(those)
    table.sort(those, function(one, other) return one.at < other.at end)
    for _, member in ipairs(those) do
        if not is_promised(member) then
            free(member)
            return true
        end
    end
    return false
end

-- Adds a client; nil where there are too many. At the limit the oldest that nobody has used for a while gives way; and where
-- twice as many have come and gone, the one that left first.
local function add_client(key, last)
    if redis.call('HLEN', members) >= max_clients then
        -- A look at all costs milliseconds: whoever tries again and again shall not take Redis's time.
        if now < (session.full_until or 0) then
            return nil
        end
        set('full_until', now + 250)
        local count, there, unused, left = 0, 0, {}, {}
        for _, member in ipairs(all()) do
            if not member.is_host then
                count = count + 1
                if client_is_present(member) then
                    there = there + 1
                    if member.stream == 0 and has_passed(member.used, UNUSED) then
                        member.at = member.used
                        unused[#unused + 1] = member
                    end
                elseif member.told then
                    member.at = member.ended or 0
                    left[#left + 1] = member
                end
            end
        end
        -- Those that have left may come back, as long as there is room for them.
        if there >= max_clients then
            if not free_oldest(unused) then
                return nil
            end
        elseif count >= 2 * max_clients and not free_oldest(left) then
            return nil
        end
    end
    host_or_new()
    return add(key, last)
end

-- A client that may speak, or why it may not. One that an application has minted is added when it first appears.
local function speaking_client(key, registration)
    local member = find(key)
    if registration == '' then
        if not member then
            if not host_is_present() then
                return nil, 'unknown host'
            end
            -- A look adds nobody.
            member = is_look and {key = key, said = 0, messages = 0, from = session.last_c, position = session.last_c, used = now,
                stream = 0, first = session.generation, last = ALWAYS} or add_client(key, ALWAYS)
            if not member then
                return nil, 'too many clients'
            end
        end
    elseif not member or session.registration ~= registration or not is_current(member) or is_over(member) then
        return nil, 'expired'
    end
    if not is_look and has_passed(member.used, math.min(session_lifetime, UNUSED) / 4) then
        member.used = now
        save(member)
    end
    return member
end

-- Whether the host of a token may speak and listen.
local function host_may(registration)
    if registration ~= '' and (session.registration ~= registration or host_is_over()) then
        return false
    end
    touch_host()
    return true
end
