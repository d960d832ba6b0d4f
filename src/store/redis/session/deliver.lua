-- Notes how far streams were given their log, those that have not lost their places.
-- KEYS: how far each member was given its log. ARGV: of each its key, the stream, how far.
local keys, notes = {}, {}
for place = 1, #ARGV, 3 do
    keys[#keys + 1] = ARGV[place]
end
for number, cursor in ipairs(redis.call('HMGET', KEYS[1], unpack(keys))) do
    local stream, position = ARGV[3 * number - 1], ARGV[3 * number]
    local of, noted = string.match(cursor or '', '^(%d+):(%d+)$')
    -- What is noted late may have been overtaken.
    if of == stream and tonumber(noted) < tonumber(position) then
        notes[#notes + 1] = keys[number]
        notes[#notes + 1] = stream .. ':' .. position
    end
end
if #notes > 0 then
    redis.call('HSET', KEYS[1], unpack(notes))
end
return 1
