-- Makes a bus for registered users.
if not bus.signed then
    return {'is open'}
end
touch(is_new)
return {'ok', kept, text(now), is_new and 1 or 0}
