-- Removes the session.
local why = why_not()
if why == 'unknown session' then
    return {why}
elseif role ~= 'host' then
    return {'not the host'}
end
remove()
return {'ok'}
