-- Gives out a plain user.
local user = new_user()
touch(is_new)
return {'ok', kept, text(now), user, text(bus.last)}
