-- What time it is, by the only clock that counts, in milliseconds; and how numbers that large are written.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function text(number)
    return string.format('%.0f', number)
end

local function has_passed(since, duration)
    return math.abs(now - since) >= duration
end

