-- Read the sums of many series together with the positions that say which events are in them.
--
-- KEYS[1]   {ns:p}:meta                 compared and read
-- KEYS[2]   {ns:p}:INC:dirty:FREQ       read
-- KEYS[3..] {ns:p}:INC:sums:FREQ:SERIES read
-- ARGV[1]   MessagePack: owner, incarnation, items {item_id}
-- Returns   {'OK', flat meta, {mark or false}, {flat sums}, …} | {'FENCED'} | {'BEHIND'}
local a = cmsgpack.unpack(ARGV[1])
local stored = redis.call('HMGET', KEYS[1], 'owner', 'incarnation')
if not stored[1] or stored[2] ~= a.incarnation then return {'BEHIND'} end
if stored[1] ~= a.owner then return {'FENCED'} end
local marks = {}
for from = 1, #a.items, 1000 do
  local part = redis.call('HMGET', KEYS[2], unpack(a.items, from, math.min(from + 999, #a.items)))
  for _, mark in ipairs(part) do marks[#marks + 1] = mark end
end
local reply = {'OK', redis.call('HGETALL', KEYS[1]), marks}
for i = 3, #KEYS do reply[i + 1] = redis.call('HGETALL', KEYS[i]) end
return reply
