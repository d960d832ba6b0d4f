-- Names the guest, by its address.
local why = why_not()
if why == 'unknown session' then
    return {why}
elseif role ~= 'host' then
    return {'not the host'}
elseif secure == '0' then
    return {'basic session'}
end
if guest and guest ~= given(1) then
    -- The one before may be waiting, or in the middle of something.
    redis.call('HINCRBY', base, 'epoch', 1)
    local receiver = redis.call('HGET', base, 'to-guest')
    if receiver then
        redis.call('HDEL', base, 'to-guest')
        call(receiver)
    end
    call_senders('to-host')
    redis.call('DEL', key('to-host'))
end
redis.call('HSET', base, 'guest', given(1))
return {'ok'}
