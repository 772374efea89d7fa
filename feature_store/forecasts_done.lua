-- Keep the forecasts that the broker has acknowledged, and clear the marks of items that nothing has touched since.
--
-- KEYS[1]  {ns:p}:meta                compared
-- KEYS[2]  {ns:p}:INC:dirty:FREQ      written
-- KEYS[3]  {ns:p}:INC:forecasts:FREQ  written
-- ARGV[1]  MessagePack: owner, incarnation, done {{item_id, mark that was read or '', summary or ''}}
--          an empty summary withdraws the item: a tombstone was sent
-- Returns  {'OK'} | {'FENCED'} | {'BEHIND'}
local a = cmsgpack.unpack(ARGV[1])
local stored = redis.call('HMGET', KEYS[1], 'owner', 'incarnation')
if not stored[1] or stored[2] ~= a.incarnation then return {'BEHIND'} end
if stored[1] ~= a.owner then return {'FENCED'} end
for _, d in ipairs(a.done) do
  if d[3] == '' then
    redis.call('HDEL', KEYS[3], d[1])
  else
    redis.call('HSET', KEYS[3], d[1], d[3])
  end
  if d[2] ~= '' and redis.call('HGET', KEYS[2], d[1]) == d[2] then redis.call('HDEL', KEYS[2], d[1]) end
end
return {'OK'}
