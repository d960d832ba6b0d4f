local redis = (function(redis)
    local function slot(key)
        return string.match(key, '{([^}]+)}') or key
    end
    local function watch(...)
        for _, key in ipairs({...}) do
            if slot(key) ~= slot(KEYS[1]) then
                error(key .. ' is in another slot than ' .. KEYS[1])
            end
        end
    end
    watch(unpack(KEYS))
    local function call(command, ...)
        if command == 'DEL' or command == 'EXISTS' then
            watch(...)
        elseif command ~= 'TIME' and command ~= 'INFO' then
            watch((...))
        end
        return redis.call(command, ...)
    end
    return setmetatable({call = call}, {__index = redis})
end)(redis)
