-- What is known of the far ends: how many there are, and how long ago one came or went (ms; '' if none ever has).
local seen = redis.call('GET', key('seen'))
return {#those_there('far-ends'), seen and text(math.max(now - seen, 0)) or ''}
