-- Says that a receiver is there. ARGV: its name.
local stream = look(ARGV[1])
if stream then
    has_gone(stream, 'r', 's')
end
return {}
