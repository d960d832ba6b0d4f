-- Sends a message to every client that is present. Tells who these are (one a line), and which of them will not get it (as JSON).
-- ARGV: the registration of the host's token ('' for none), the message.
local registration, data = ARGV[FIRST + 1], ARGV[FIRST + 2]
if not host_may(registration) then
    return refused('expired')
end
local room = math.max(max_queue - #data, 0)
local MOST_KNOWN = 60000

-- Whether those that were found last are still those that are present, and nobody of them can lag.
local function are_known()
    return session.known_until and session.known_at <= now and now < session.known_until
        and session.total_c - session.known_behind <= room
        and redis.call('ZCOUNT', present, '-inf', text(now)) == 0
end

-- Looks at all clients. Who is present, and who of them lags too much; it is kept where nobody does.
local function look_at_all()
    local those, ids, except, until_when = {}, {}, {}, now + MOST_KNOWN
    for _, member in ipairs(clients()) do
        local is_present, ends = client_is_present(member)
        if is_present then
            those[#those + 1] = member
            ids[#ids + 1] = string.sub(member.key, 2)
            until_when = math.min(until_when, ends or until_when)
        end
    end
    local lags, begins = lagging(those, room)
    for key in pairs(lags) do
        except[#except + 1] = key
    end
    local lines = table.concat(ids, '\n')
    if #except == 0 and #ids > 0 then
        set('known_at', now)
        set('known_until', until_when)
        set('known_behind', begins or session.total_c)
        redis.call('HSET', record, 'recipients', lines)
    end
    return lines, except, #ids
end

local recipients, except, count
if are_known() then
    recipients, except, count = redis.call('HGET', record, 'recipients'), {}, 1
else
    recipients, except, count = look_at_all()
end
if count == 0 then
    -- Clients may wait for a host that has yet to come; a message that reaches nobody need not.
    local is_present, kind = host_is_present()
    if kind == 'waiting' or not is_present then
        return refused('nobody there')
    end
    return ok('', '')
end
-- What nobody gets needs no room: it stands there for those only that are told so.
local event = MESSAGE
if #except == count then
    event, data = LEFT_OUT, ''
end
local without = #except > 0 and cjson.encode(except) or ''
local is_said, why = put_to_all(event, data, without)
if not is_said then
    return refused(why)
end
return ok(recipients, without)
