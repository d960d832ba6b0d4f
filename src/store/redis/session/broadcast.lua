-- Sends a message to every client that is present, and tells for each whether it will get it.
-- ARGV: the registration of the host's token ('' for none), the message.
local registration, data = ARGV[FIRST + 1], ARGV[FIRST + 2]
if not host_may(registration) then
    return refused('expired')
end
local recipients = {}
for _, member in ipairs(clients()) do
    if client_is_present(member) then
        recipients[#recipients + 1] = member
    end
end
if #recipients == 0 then
    -- Clients may wait for a host that has yet to come; a message that reaches nobody need not.
    local is_present, kind = host_is_present()
    if kind == 'waiting' or not is_present then
        return refused('nobody there')
    end
    return ok({})
end
local room = math.max(max_queue - #data, 0)
local answer, except = {}, {}
for _, member in ipairs(recipients) do
    local is_sent = lag(member, room) <= room
    if not is_sent then
        except[#except + 1] = member.key
    end
    answer[#answer + 1] = string.sub(member.key, 2)
    answer[#answer + 1] = is_sent and 1 or 0
end
-- What nobody gets needs no room: it stands there for those only that are told so.
local event = MESSAGE
if #except == #recipients then
    event, data = LEFT_OUT, ''
end
local is_said, why = put_to_all(event, data, #except > 0 and cjson.encode(except) or '')
if not is_said then
    return refused(why)
end
return ok(answer)
