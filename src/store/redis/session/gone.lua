-- Who has gone: what all that is done in a session has, after what is said in it.

local function set_told(member)
    member.told = true
    -- One that never was has not ended just now.
    member.ended = member.ended or 0
    save(member)
end

-- Tells every client, also those that are away and may come back, that the host has gone. Once is enough.
local function tell_clients()
    -- Else they are told once there is room.
    if #clients() > 0 and not put_to_all(word, host_closed .. cjson.encode(session.id) .. '}') then
        return
    end
    set_told(host_or_new())
end

-- Whether it has ended, longer than the grace ago, and its peers do not know.
local function is_news(member)
    local kind, at = presence(member)
    return kind == 'ended' and not member.told and has_passed(at, grace)
end

local function tell_of_host()
    local member = host()
    if member and is_news(member) then
        tell_clients()
    end
end

local function tell_of_client(member)
    if not is_news(member) then
        return
    end
    local to = host()
    if is_current(member) and to then
        local event = client_closed .. cjson.encode(string.sub(member.key, 2)) .. '}'
        -- Else it is told once there is room; until then its line stays.
        if put(to, word, event, 2 * max_queue) then
            return
        end
    end
    set_told(member)
end

-- Tells the peers of every stream that has ended.
local function tell_all()
    tell_of_host()
    local untold = 0
    for _, member in ipairs(clients()) do
        tell_of_client(member)
        if member.ended and not member.told then
            untold = 1
        end
    end
    local member = host()
    if member and member.ended and not member.told then
        untold = 1
    end
    set('untold', untold)
    if not could_say_nothing() then
        redis.call('ZREMRANGEBYSCORE', present, '-inf', text(gone_up_to()))
    end
end
