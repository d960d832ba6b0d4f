-- Registers the host.
-- ARGV: whether its id was 'chosen' or 'drawn', the registration, and its key.
local claim, registration, key = ARGV[FIRST + 1], ARGV[FIRST + 2], ARGV[FIRST + 3]
-- That many earlier registrations may have something left at a time.
local MOST_FORMER = 16
if is_new then
    return ok()
end

-- Whether the id belongs to somebody: a host that is present, or may still open its stream, or one of an application for which
-- something waits (which all of its tokens may fetch).
local function is_taken()
    local is_present, kind = host_is_present()
    if kind == 'waiting' then
        is_present = not has_passed(session.touched, OPENING)
    end
    if is_present or session.registration ~= '' then
        return is_present
    end
    local member = host()
    return member and has_message(member, member.position)
end
is_look = true
if claim == 'drawn' or is_taken() then
    return {'taken'}
end
is_look = false

local function count(list)
    local seen, number = {}, 0
    for _, member in ipairs(list) do
        if not seen[member.first] then
            seen[member.first], number = true, number + 1
        end
    end
    return number
end

-- Forgets those of earlier registrations to which nothing is promised; where many registrations have something left, also those
-- that were given all of it. Whether there is room for one more.
local function tidy_former()
    local former = {}
    for _, member in ipairs(all()) do
        if not is_current(member) and presence(member) ~= 'listening' then
            former[#former + 1] = member
        end
    end
    for _, is_given_enough in ipairs({false, true}) do
        if count(former) < MOST_FORMER then
            break
        end
        local stay = {}
        for _, member in ipairs(former) do
            if is_promised(member) and (not is_given_enough or has_message(member, member.position)) then
                stay[#stay + 1] = member
            else
                free(member)
            end
        end
        former = stay
    end
    return count(former) < MOST_FORMER
end
if not tidy_former() then
    return refused('messages wait')
end

local before = host()
if not (before and presence(before) == 'ended' and before.told) then
    tell_clients()
end
-- What was said to all of a generation is of use to its members alone.
local has_members = {}
for _, member in ipairs(all()) do
    has_members[text(member.first)] = true
end
for _, field in ipairs(redis.call('HKEYS', record)) do
    local generation = string.match(field, '^all%S* (%d+)$')
    if generation and not has_members[generation] then
        redis.call('HDEL', record, field)
    end
end
set('generation', session.generation + 1)
forget_recipients()
set('registration', registration)
set('host', key)
set('touched', now)
return ok()
