-- Whether Redis uses more memory than it may. It is looked at for the first entry of a log, and then once in 64 KiB of it.
local function is_out_of_memory(total, size, most)
    local PIECE = 65536
    if total > 0 and math.floor(total / PIECE) == math.floor((total + size) / PIECE) then
        return false
    end
    return tonumber(string.match(redis.call('INFO', 'memory'), 'used_memory:(%d+)')) > most
end
