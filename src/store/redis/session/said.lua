-- What is said: what all that is done in a session has, after what it begins with.

local function number_of(id)
    return tonumber(string.match(id, '^%d+'))
end

local function log_of(is_host)
    return is_host and host_log or client_log, is_host and '_h' or '_c'
end

-- The bytes that a record counts for: its data, and those it names that were left out.
local function size_of(fields)
    return #fields[8] + #fields[12] + HEAD
end

-- Drops what is too old, and of what all have been given (up to `floor`) all but so much. The bytes that are left.
local function trim(is_host, floor)
    local log, part = log_of(is_host)
    local oldest = (now - lifetime + 1) * 1024
    local given = math.max(max_queue, UNDER_WAY)
    local floor_bytes
    if floor then
        local after = redis.call('XRANGE', log, '(' .. text(floor), '+', 'COUNT', 1)[1]
        floor_bytes = after and tonumber(after[2][10]) or session['total' .. part]
    end
    local gone, left, count
    repeat
        -- Nearly always the first stays.
        count = gone and 100 or 1
        local some = redis.call('XRANGE', log, gone and '(' .. text(gone) or '-', '+', 'COUNT', count)
        left = nil
        for _, entry in ipairs(some) do
            local id, before = number_of(entry[1]), tonumber(entry[2][10])
            if id >= oldest and not (floor_bytes and before + size_of(entry[2]) <= floor_bytes - given) then
                left = session['total' .. part] - before
                break
            end
            gone = id
        end
    until left or #some < count
    if gone and not is_look then
        set('gone' .. part, gone)
        redis.call('XTRIM', log, 'MINID', '=', text(gone + 1))
    end
    return left or 0
end

-- Up to where all of these have been given a log.
local function floor_of(is_host, those)
    local floor
    for _, member in ipairs(those) do
        if member.is_host == is_host then
            floor = math.min(floor or member.position, member.position)
        end
    end
    return floor or (is_host and session.last_h or session.last_c)
end

-- Appends a record for one member ('' for all of a generation) and tells it; false, and why, where there is no room for it.
local function append(is_host, to, event, data, except)
    local log, part = log_of(is_host)
    local most = is_host and 4 * max_queue + UNDER_WAY or max_topic
    except = except or ''
    local left, size = trim(is_host), #data + #except
    if left + size > most and trim(is_host, floor_of(is_host, all())) + size > most then
        return false, 'topic full'
    end
    local last = session['last' .. part]
    local id = math.max(now * 1024, last + 1)
    local total = session['total' .. part]
    if is_out_of_memory(total, size + HEAD, max_data) then
        return false, 'data full'
    end
    is_more = is_more or (left == 0 and redis.call('EXISTS', log) == 0)
    local generation = text(session.generation)
    redis.call('XADD', log, text(id) .. '-0', 't', to, 'g', generation, 'e', event, 'd', data, 'b', text(total), 'x', except)
    session['last' .. part], session['total' .. part] = id, total + size + HEAD
    redis.call('HSET', record, 'last' .. part, text(id), 'total' .. part, text(total + size + HEAD))
    -- What the processes that serve many listen to, and what a program for one stream does.
    local told = table.concat({text(id), text(last), to, generation, event, except, data}, '\n')
    redis.call('SPUBLISH', log, told)
    redis.call('SPUBLISH', log .. ' ' .. to, told)
    return true, id
end

-- Of members of one log those for whom more than `enough` bytes wait, as a set of keys: from the first record that is for each to
-- the end, whoever the others are for. And where, in bytes, that begins which waits for any of them.
local function lagging(those, enough)
    local lags, waiting = {}, {}
    for _, member in ipairs(those) do
        if last_said(member, false) > member.position then
            waiting[#waiting + 1] = member
        end
    end
    if #waiting == 0 then
        return lags
    end
    table.sort(waiting, function(one, other) return one.position < other.position end)
    local log, part = log_of(waiting[1].is_host)
    local total, begins = session['total' .. part], nil
    -- One walk for all, one record first, which is nearly always enough. `open` are those that it has reached and not settled.
    local reached, open, position, looked, count = 0, {}, 0, 0, 0
    repeat
        local is_open = next(open) ~= nil
        position = is_open and position or math.max(position, waiting[reached + 1].position)
        count = is_open and math.min(2 * count, 64) or 1
        local some = redis.call('XRANGE', log, '(' .. text(position), '+', 'COUNT', count)
        for _, entry in ipairs(some) do
            local id, before = number_of(entry[1]), tonumber(entry[2][10])
            begins = begins or before
            if total - before <= enough then
                return lags, begins
            end
            while reached < #waiting and waiting[reached + 1].position < id do
                reached = reached + 1
                open[waiting[reached].key] = waiting[reached]
            end
            local to, generation = entry[2][2], tonumber(entry[2][4])
            looked = looked + 1
            -- A bounded look: what is further is counted from there.
            local is_enough = looked > 1000
            for key, member in pairs((is_enough or to == '') and open or {[to] = open[to]}) do
                if is_enough or to == key or (member.first <= generation and generation <= member.last) then
                    lags[key], open[key] = true, nil
                end
            end
            position = id
        end
    until #some < count or (reached == #waiting and next(open) == nil)
    return lags, begins
end

-- Says an event to one member; why not, where there is no room for it.
local function put(member, event, data, limit)
    local room = math.max(limit - #data, 0)
    if #data > limit or lagging({member}, room)[member.key] then
        return 'queue full'
    end
    local is_there, id = append(member.is_host, member.key, event, data)
    if not is_there then
        return id
    end
    member.said = id
    if event == MESSAGE then
        member.messages = id
    end
    save(member)
end

-- Says an event to all clients; false, and why, where there is no room.
local function put_to_all(event, data, except)
    local is_said, id = append(false, '', event, data, except)
    if is_said then
        set('all', id)
        write('HSET', record, 'all ' .. text(session.generation), text(id))
        if event == MESSAGE then
            set('all_messages', id)
            write('HSET', record, 'all_messages ' .. text(session.generation), text(id))
        end
    end
    return is_said, id
end
