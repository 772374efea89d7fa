-- Claim a partition: write a new owner, begin an incarnation if there is none, tell what stands there.
--
-- KEYS[1]  {ns:p}:meta   read and written
-- ARGV     owner, layout version of the code, partition count of the topics, incarnation to begin if meta is missing
-- Returns  {'OK', flat meta} | {'LAYOUT', stored version} | {'PARTITIONS', stored count}
local meta = KEYS[1]
local layout = redis.call('HGET', meta, 'layout')
if layout then
  if layout ~= ARGV[2] then return {'LAYOUT', layout} end
  local count = redis.call('HGET', meta, 'partition_count')
  if count ~= ARGV[3] then return {'PARTITIONS', count} end
else
  redis.call('HSET', meta, 'layout', ARGV[2], 'partition_count', ARGV[3], 'incarnation', ARGV[4], 'sequence', '0')
end
redis.call('HSET', meta, 'owner', ARGV[1])
return {'OK', redis.call('HGETALL', meta)}
