-- Gives some of what comes after an id, for a user; and says what there is.
-- ARGV: the user ('' for somebody who is none), the id ('' for what comes from now on), so many bytes (about; 0 for nothing),
-- and for somebody who is to wait the node, how many wait there then, and how many may wait in all.
local user, after, size = ARGV[5], ARGV[6], tonumber(ARGV[7])
local node, own, most_readers = ARGV[8], tonumber(ARGV[9]), tonumber(ARGV[10])
if user == 'new' then
    user = new_user()
elseif user ~= '' and not knows(user) then
    return {'unknown user'}
end
if node ~= '' then
    local others = readers() - (redis.call('HGET', waiting, node) or 0)
    if others + own > most_readers then
        return {'too many readers'}
    end
    wait_on(node, own)
end
touch(is_new)
local start = after == '' and bus.last or math.min(tonumber(after), bus.last)
local answer, position, has_more = {}, start, 0
while size > 0 do
    has_more = 0
    local some = redis.call('XRANGE', log, '(' .. text(position), '+', 'COUNT', 32)
    for _, entry in ipairs(some) do
        if size <= 0 then
            has_more = 1
            break
        end
        position = number_of(entry[1])
        size = size - #entry[2][4] - HEAD
        answer[#answer + 1] = text(position)
        answer[#answer + 1] = entry[2][2]
        answer[#answer + 1] = entry[2][4]
    end
    if #some < 32 then
        break
    end
    has_more = 1
end
return {
    'ok', kept, text(now), user == '' and '0' or user, text(bus.first), text(bus.gone), text(bus.last), text(start), has_more,
    answer,
}
