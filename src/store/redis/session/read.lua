-- Gives some of what comes after an id, of what is for a member.
-- ARGV: its key, its first and last generation, the id, so many bytes (about).
is_look = true
local key, first, last = ARGV[FIRST + 1], tonumber(ARGV[FIRST + 2]), tonumber(ARGV[FIRST + 3])
local position, size = tonumber(ARGV[FIRST + 4]), tonumber(ARGV[FIRST + 5])
local log, part = log_of(string.sub(key, 1, 1) == 'h')
local answer, has_more = {}, 0
local start = position
-- A bounded look: what is for others is passed over.
for _ = 1, 40 do
    has_more = 0
    local some = redis.call('XRANGE', log, '(' .. text(position), '+', 'COUNT', 32)
    for _, entry in ipairs(some) do
        if size <= 0 then
            has_more = 1
            break
        end
        position = number_of(entry[1])
        local fields = entry[2]
        local to, generation = fields[2], tonumber(fields[4])
        if to == key or (to == '' and first <= generation and generation <= last) then
            size = size - size_of(fields)
            for _, value in ipairs({text(position), to, fields[4], fields[6], fields[12], fields[8]}) do
                answer[#answer + 1] = value
            end
        end
    end
    if #some < 32 or has_more == 1 then
        break
    end
    has_more = 1
end
return ok(text(has_more == 0 and math.max(session['last' .. part], start) or position), has_lost(key, start, part) and 1 or 0, has_more,
    answer)
