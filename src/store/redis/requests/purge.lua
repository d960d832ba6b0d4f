-- Removes everything of a server that is not registered any more. Whoever waits is called, and finds it gone; an answer that has
-- begun goes on.
for _, kind in ipairs({'clients', 'far-ends'}) do
    for _, name in ipairs(redis.call('ZRANGE', key(kind), 0, -1)) do
        if kind == 'clients' then
            redis.call('DEL', key(name))
        end
        call(name)
    end
    redis.call('DEL', key(kind))
end
redis.call('DEL', key('waiting'), key('seen'))
return {'ok'}
