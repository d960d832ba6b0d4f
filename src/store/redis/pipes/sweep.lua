-- Removes the session if it is over; or, for one that wants its room ('1'), if nobody has met in it for a while and nobody waits.
local UNUSED = 60000
local is_unused = given(1) == '1' and not met and token and has_passed(tonumber(touched), UNUSED) and not is_in_use()
if is_over() or is_unused then
    remove()
    return {'unknown session'}
end
return {'ok'}
